//! Tests of the packer, a module per subject.

mod account;
mod builders;
mod calibrate;
mod common;
mod config;
mod donors;
mod float8;
mod import;
mod interrupted;
mod latent;
mod layouts;
mod pack;
mod pickles;
mod quantizers;
mod ranges;
mod readme;
mod refusals;
mod reverse;
mod rules;
mod scheduler;
mod settings;
mod steps;
mod tokenizer;
mod torch;
mod torch_hostile;
mod unpack;
