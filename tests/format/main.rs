//! The file and its codes: what is written reads back, files do not drift, and hostile ones are refused.

mod codecs;
mod files;
mod golden;
mod hostile;
mod ops;
