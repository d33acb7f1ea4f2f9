"""The demo's simulated world: topics, rules, answers, votes and the true reward."""
