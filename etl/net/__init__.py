"""Fetching: who may be dialled, how politely, and what each way of failing is called."""
