"""The papers' figures, tables and claims, made again."""
