//! Has MLX's CPU backend on Linux take its matrix products from OpenBLAS, those of few columns from here.
//!
//! The published MLX for Linux is linked to the reference BLAS, many times slower. Which library its calls reach is
//! changed where the program holds it, in the table of imported functions of MLX's library, so that it matters neither
//! what was loaded first nor whether MLX has run already.
#![cfg(target_os = "linux")]

mod gemm;
mod imports;
mod matvec;

use std::ffi::CStr;

/// Lead the matrix products of the loaded library whose file name begins with `library` to OpenBLAS and to this crate.
///
/// Returns whether it was done: not where OpenBLAS isn't installed or the library imports no matrix product.
pub fn accelerate(library: &str) -> bool {
    let Some(blas) = gemm::open_blas() else { return false };
    let others: [&CStr; 2] = [c"cblas_dgemm", c"cblas_cgemm"];
    for name in others {
        if let Some(function) = blas.find(name) {
            imports::replace(library, name, function);
        }
    }
    imports::replace(library, c"cblas_sgemm", gemm::sgemm as *const ()) > 0
}
