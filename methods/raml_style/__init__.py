"""RAML-style: redundancy-aware fusion of separately trained unimodal encoders (our design after an abstract)."""
