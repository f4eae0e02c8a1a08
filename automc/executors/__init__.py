"""Where candidates are scored; the loop only knows the protocol in `executor`."""
