"""The estimators of FSLRs (Section 3, Appendix B): how a probe batch is turned into numbers."""
