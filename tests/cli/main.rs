//! The program as a person meets it.

mod commands;
mod interrupted;
mod prompts;
mod readme;
mod run;
mod video;
