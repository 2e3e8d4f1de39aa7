//! Sound in and out for a full-duplex voice model. The core knows nothing of Python; the bindings are below `python`.

pub mod capture;
pub mod drift;
pub mod fade;
pub mod frame;
pub mod meter;
pub mod playback;
pub mod playback_callback;
pub mod reference;
pub mod resample;
pub mod sound_file;

#[cfg(feature = "python")]
mod python;

#[cfg(test)]
mod clock_tests;
#[cfg(test)]
mod realtime_tests;
