//! The program as a person meets it.

mod commands;
mod engines;
mod interrupted;
mod prompts;
mod readme;
mod run;
mod sample;
mod video;
