//! Matrix products of one or two columns as matrix-vector products.
//!
//! MLX hands every product to `cblas_sgemm`, and OpenBLAS's first copies the whole matrix into blocks that pay off over
//! many columns. A step of the models here has one or two: read as matrix-vector products, the weights come once from
//! memory. What has more columns is passed on.

use std::ffi::{CStr, c_float, c_int, c_void};
use std::sync::OnceLock;

use crate::matvec::matvec;

const ROW_MAJOR: c_int = 101;
const NO_TRANS: c_int = 111;
const TRANS: c_int = 112;

/// Up to so many columns (or rows) a product is taken apart.
const MOST_VECTORS: c_int = 2;

/// Elements of a matrix that one thread reads as fast as several that must be woken: what a processor's cache holds.
const MOST_ON_ONE_THREAD: i64 = 1 << 20;

type Gemm = unsafe extern "C" fn(
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_float,
    *const c_float,
    c_int,
    *const c_float,
    c_int,
    c_float,
    *mut c_float,
    c_int,
);
type Gemv = unsafe extern "C" fn(
    c_int,
    c_int,
    c_int,
    c_int,
    c_float,
    *const c_float,
    c_int,
    *const c_float,
    c_int,
    c_float,
    *mut c_float,
    c_int,
);

/// The functions used of OpenBLAS.
pub struct OpenBlas {
    library: *mut c_void,
    gemm: Gemm,
    gemv: Gemv,
}

// SAFETY: the library's handle is only looked names up in, which any thread may do.
unsafe impl Send for OpenBlas {}
// SAFETY: as above.
unsafe impl Sync for OpenBlas {}

impl OpenBlas {
    /// A function of the library.
    pub fn find(&self, name: &CStr) -> Option<*const ()> {
        find(self.library, name).map(|function| function.cast_const().cast())
    }
}

fn find(library: *mut c_void, name: &CStr) -> Option<*mut c_void> {
    // SAFETY: the library was loaded and stays so; the name is a NUL-terminated string.
    let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
    (!symbol.is_null()).then_some(symbol)
}

/// The library, loaded once; None where it isn't installed.
pub fn open_blas() -> Option<&'static OpenBlas> {
    static FOUND: OnceLock<Option<OpenBlas>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            // SAFETY: the argument is a NUL-terminated string.
            let library = unsafe { libc::dlopen(c"libopenblas.so.0".as_ptr(), libc::RTLD_NOW) };
            if library.is_null() {
                return None;
            }
            let (gemm, gemv) = (find(library, c"cblas_sgemm")?, find(library, c"cblas_sgemv")?);
            // SAFETY: the symbols are the CBLAS functions of these names, whose signatures the types are.
            let (gemm, gemv) = unsafe {
                (
                    std::mem::transmute::<*mut c_void, Gemm>(gemm),
                    std::mem::transmute::<*mut c_void, Gemv>(gemv),
                )
            };
            Some(OpenBlas { library, gemm, gemv })
        })
        .as_ref()
}

/// C = alpha op(A) op(B) + beta C, as CBLAS has it.
///
/// # Safety
/// As for CBLAS: the pointers must be to matrices of the sizes given.
pub unsafe extern "C" fn sgemm(
    order: c_int,
    trans_a: c_int,
    trans_b: c_int,
    m: c_int,
    n: c_int,
    k: c_int,
    alpha: c_float,
    a: *const c_float,
    lda: c_int,
    b: *const c_float,
    ldb: c_int,
    beta: c_float,
    c: *mut c_float,
    ldc: c_int,
) {
    let Some(blas) = open_blas() else { unreachable!("only used in OpenBLAS's place") };
    let flip = |trans| if trans == NO_TRANS { TRANS } else { NO_TRANS };
    let stored = |trans, rows, columns| {
        if trans == NO_TRANS { (rows, columns) } else { (columns, rows) }
    };
    // Where column j of op(B) (or row i of op(A)) begins and how far apart its elements are.
    let vector = |along: bool, index: c_int, ld: c_int| {
        if along { (index as isize * ld as isize, 1) } else { (index as isize, ld) }
    };
    let contiguous = n == 1 && (trans_b != NO_TRANS || ldb == 1) || n == 2 && trans_b != NO_TRANS;
    let small = m > n && k > 0 && m as i64 * k as i64 <= MOST_ON_ONE_THREAD;
    if order == ROW_MAJOR && trans_a == NO_TRANS && contiguous && small {
        let (m, k, lda, ldb, ldc) = (m as usize, k as usize, lda as usize, ldb as usize, ldc as usize);
        // SAFETY: A has m rows of k elements, lda apart; the last one need not be followed by a gap. Column j of op(B)
        // has k elements one after another, from j * ldb.
        let (matrix, first) =
            unsafe { (std::slice::from_raw_parts(a, (m - 1) * lda + k), std::slice::from_raw_parts(b, k)) };
        let write = |row: usize, column: usize, sum: f32| {
            // SAFETY: C has m rows, ldc apart, of n elements, which nobody else uses during the call.
            let out = unsafe { &mut *c.add(row * ldc + column) };
            // With beta 0 what C holds doesn't count, be it NaN.
            *out = alpha * sum + if beta == 0.0 { 0.0 } else { beta * *out };
        };
        if n == 1 {
            matvec(matrix, lda, k, [first], |row, [sum]| write(row, 0, sum));
        } else {
            // SAFETY: as above, for the second column.
            let second = unsafe { std::slice::from_raw_parts(b.add(ldb), k) };
            matvec(matrix, lda, k, [first, second], |row, sums| {
                write(row, 0, sums[0]);
                write(row, 1, sums[1]);
            });
        }
    } else if order == ROW_MAJOR && n <= MOST_VECTORS && m > n {
        let (rows, columns) = stored(trans_a, m, k);
        for j in 0..n {
            let (start, step) = vector(trans_b != NO_TRANS, j, ldb);
            // SAFETY: A is as the caller describes it; column j of op(B) has k elements, column j of C has m.
            unsafe {
                let (x, y) = (b.offset(start), c.offset(j as isize));
                (blas.gemv)(order, trans_a, rows, columns, alpha, a, lda, x, step, beta, y, ldc);
            }
        }
    } else if order == ROW_MAJOR && m <= MOST_VECTORS {
        let (rows, columns) = stored(trans_b, k, n);
        for i in 0..m {
            let (start, step) = vector(trans_a == NO_TRANS, i, lda);
            // SAFETY: B is as the caller describes it; row i of op(A) has k elements, row i of C has n.
            unsafe {
                let (x, y) = (a.offset(start), c.offset(i as isize * ldc as isize));
                (blas.gemv)(order, flip(trans_b), rows, columns, alpha, b, ldb, x, step, beta, y, 1);
            }
        }
    } else {
        // SAFETY: the caller's own arguments.
        unsafe {
            (blas.gemm)(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
        }
    }
}
