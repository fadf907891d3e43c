"""Reporting: tables, pictures, pages and progress bars."""
