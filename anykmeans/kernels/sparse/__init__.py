"""The steps for sparse rows, one file for each kernel of the table that can make them: entries alone are looked at.

Rows come as `anykmeans._sparse.SparseRows`; steps that see none of them are those of dense rows.
"""
