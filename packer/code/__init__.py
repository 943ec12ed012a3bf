"""Code that counts under the cap: minified, wrapped, weighed."""
