//! Tests of the packer, a module per subject.

mod builders;
mod common;
mod config;
mod interrupted;
mod latent;
mod layouts;
mod pack;
mod quantizers;
mod refusals;
mod scheduler;
mod tokenizer;
mod torch;
mod torch_hostile;
mod unpack;
