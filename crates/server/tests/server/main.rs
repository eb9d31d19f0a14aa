//! The server as its clients meet it: over a socket, with the model of letters.

mod client;
mod jobs;
mod load;
mod malformed;
mod openai;
mod security;
mod webui;
