//! The program as a person meets it.

mod commands;
mod prompts;
mod readme;
mod run;
