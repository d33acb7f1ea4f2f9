"""What stages exchange and what makes a stage: schemas, files, identity, the runtime. Imports no model library."""
