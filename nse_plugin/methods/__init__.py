"""Editing methods, one per file; each is a function ``edit_round(session, requests, hparams)``."""
