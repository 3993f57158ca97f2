"""Central pretraining: public text to a checkpoint that sites fine-tune."""
