"""What trainers send: our own rollouts, and the forms of vLLM, SGLang, TRL and atropos."""
