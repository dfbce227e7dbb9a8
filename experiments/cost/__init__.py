"""The cost model of communication."""
