//! Sound in and out for a full-duplex voice model. The core knows nothing of Python; the bindings are below `python`.

pub mod capture;
pub mod devices;
pub mod drift;
pub mod echo;
mod echo_drift;
mod echo_filter;
mod echo_reference;
mod echo_spectrum;
mod echo_suppressor;
pub mod ends;
pub mod engine;
pub mod fade;
pub mod frame;
pub mod hosts;
pub mod line;
pub mod meter;
pub mod playback;
pub mod playback_callback;
pub mod reference;
pub mod resample;
pub mod sound_file;
pub mod stats;
pub mod stream;

#[cfg(feature = "python")]
mod python;

#[cfg(test)]
mod clock_tests;
#[cfg(test)]
mod echo_tests;
#[cfg(test)]
mod engine_tests;
#[cfg(test)]
mod line_tests;
#[cfg(test)]
mod memory_host;
#[cfg(test)]
mod realtime_tests;
