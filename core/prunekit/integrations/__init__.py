"""Masks kept while other libraries train. Each module needs its library, and nothing else imports it."""
