//! Ops, kernels, the executor, samplers and what surrounds a run on the CPU, each against an oracle of its own.

mod allocation;
mod classes;
mod coded;
mod encoder;
mod exec;
mod fake_quantized;
mod image;
mod kernels;
mod oracle;
mod outliers;
mod pictures;
mod reach;
mod rng;
mod sampler_ops;
mod samplers;
mod samplers_config;
mod samplers_ranges;
mod samplers_run;
mod shapes;
mod text;
mod tiers;
