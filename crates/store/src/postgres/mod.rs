//! The store on PostgreSQL: many nodes, one truth.

#![expect(dead_code, reason = "the verbs that use these are added next")]

mod error;
mod names;
mod options;
mod pool;
mod reads;
mod row;
mod schema;
mod tls;

pub use options::PostgresOptions;
