"""Will it work, how long will it take, and what will it cost?  Asked by ``etl doctor``, and in short by every run."""
