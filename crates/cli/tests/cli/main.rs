//! The program as a person meets it.

mod commands;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod devices;
mod engines;
mod interrupted;
mod prompts;
mod readme;
mod run;
mod sample;
mod serve;
mod video;
