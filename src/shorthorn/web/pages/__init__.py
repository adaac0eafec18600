"""The pages, one module for each: requests → views → templates."""
