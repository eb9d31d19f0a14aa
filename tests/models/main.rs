//! Whole models and pipelines against the outputs of the libraries that they come from.

mod calibrated;
mod dit;
mod generators;
mod glyphs;
mod hunyuan;
mod img2img;
mod integer;
mod jobs;
mod latte;
mod layouts;
mod lengths;
mod pipelines;
mod pixart;
mod recall;
mod stdit;
mod text_unets;
mod unets;
mod video;
