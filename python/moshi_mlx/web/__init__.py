"""Moshi over the network: the published protocol, a raw one for apps, and the page for browsers."""
