//! OpenAPI documents, made from the schema on demand: v3 per group and version (`kubectl explain`, `--validate`), and
//! one v2 document for clients that ask for it.
