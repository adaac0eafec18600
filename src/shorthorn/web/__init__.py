"""The browser's edge: pages, event streams, and bytes of images over HTTP."""
