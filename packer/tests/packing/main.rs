//! Tests of the packer through its library, a module per subject.

mod builders;
mod common;
mod config;
mod latent;
mod layouts;
mod pack;
mod quantizers;
mod readme;
mod refusals;
mod scheduler;
mod tokenizer;
mod torch;
mod torch_hostile;
mod unpack;
