"""Language models: loading, adapters, the policy, log-probabilities, sampling."""
