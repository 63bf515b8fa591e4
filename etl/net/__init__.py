"""Fetching: who may be dialled, how a download goes on, and what each way of failing is called."""
