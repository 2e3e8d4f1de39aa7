//! Matrix products of a few columns or rows as matrix-vector products.
//!
//! MLX hands every product to `cblas_sgemm`, and OpenBLAS's first copies the whole matrix into blocks that pay off over
//! many columns. A step of the models here has one to four: read as matrix-vector products, the weights come once from
//! memory. What has more is passed on.

use std::ffi::{CStr, c_float, c_int, c_void};
use std::sync::OnceLock;

use crate::matvec::{MOST_VECTORS, matvec};

const ROW_MAJOR: c_int = 101;
const NO_TRANS: c_int = 111;
const TRANS: c_int = 112;

/// Up to so many vectors a product that isn't done here is taken apart into matrix-vector products.
const MOST_PRODUCTS: c_int = 2;

/// Elements of a matrix up to which its product with one vector is done here, on one thread: to wake others for it takes
/// longer than they save.
const MOST_FOR_ONE: i64 = 1 << 19;

/// The same for several vectors, where OpenBLAS copies the matrix before it multiplies.
const MOST_FOR_SEVERAL: i64 = 1 << 22;

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

/// Rows of one operand, each a vector of the product's `k` elements: `start + index * stride`.
struct Rows {
    start: *const c_float,
    stride: usize,
    count: usize,
}

impl Rows {
    /// # Safety
    /// The operand must have that many rows of `k` elements, and outlive the slice.
    unsafe fn all(&self, k: usize) -> &[c_float] {
        // SAFETY: the caller vouches for it; the last row need not be followed by a gap.
        unsafe { std::slice::from_raw_parts(self.start, (self.count - 1) * self.stride + k) }
    }
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
    let few = m.min(n);
    if order != ROW_MAJOR || m == n || few < 1 || few as usize > MOST_VECTORS || k < 1 {
        // SAFETY: the caller's own arguments.
        return unsafe { (blas.gemm)(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc) };
    }
    // The elements that are multiplied and summed lie one after another in the rows of A and in the columns of B.
    let along_a = trans_a == NO_TRANS || (m == 1 && lda == 1);
    let along_b = trans_b != NO_TRANS || (n == 1 && ldb == 1);
    let size = i64::from(m.max(n)) * i64::from(k);
    let most = if few == 1 { MOST_FOR_ONE } else { MOST_FOR_SEVERAL };
    if along_a && along_b && size <= most {
        let rows_of = |start, ld: c_int, count| Rows {
            start,
            stride: if count == 1 { k } else { ld } as usize,
            count: count as usize,
        };
        let (rows, columns) = (rows_of(a, lda, m), rows_of(b, ldb, n));
        let (matrix, vectors) = if m > n { (&rows, &columns) } else { (&columns, &rows) };
        let (k, ldc) = (k as usize, ldc as usize);
        // SAFETY: the operands are as the caller describes them.
        let (whole, others) = unsafe { (matrix.all(k), vectors.all(k)) };
        let mut split = [others; MOST_VECTORS];
        for (index, vector) in split.iter_mut().take(vectors.count).enumerate() {
            *vector = &others[index * vectors.stride..][..k];
        }
        matvec(whole, matrix.stride, k, &split[..vectors.count], &mut |row, vector, sum| {
            let (i, j) = if m > n { (row, vector) } else { (vector, row) };
            // SAFETY: C has m rows, ldc apart, of n elements, which nobody else uses during the call.
            let out = unsafe { &mut *c.add(i * ldc + j) };
            // With beta 0 what C holds doesn't count, be it NaN.
            *out = alpha * sum + if beta == 0.0 { 0.0 } else { beta * *out };
        });
    } else if few <= MOST_PRODUCTS && m > n {
        let (rows, columns) = if trans_a == NO_TRANS { (m, k) } else { (k, m) };
        for j in 0..n {
            let (start, step) =
                if trans_b == NO_TRANS { (j as isize, ldb) } else { (j as isize * ldb as isize, 1) };
            // SAFETY: A is as the caller describes it; column j of op(B) has k elements, column j of C has m.
            unsafe {
                let (x, y) = (b.offset(start), c.offset(j as isize));
                (blas.gemv)(order, trans_a, rows, columns, alpha, a, lda, x, step, beta, y, ldc);
            }
        }
    } else if few <= MOST_PRODUCTS {
        let (rows, columns) = if trans_b == NO_TRANS { (k, n) } else { (n, k) };
        let turned = if trans_b == NO_TRANS { TRANS } else { NO_TRANS };
        for i in 0..m {
            let (start, step) =
                if trans_a == NO_TRANS { (i as isize * lda as isize, 1) } else { (i as isize, lda) };
            // SAFETY: B is as the caller describes it; row i of op(A) has k elements, row i of C has n.
            unsafe {
                let (x, y) = (a.offset(start), c.offset(i as isize * ldc as isize));
                (blas.gemv)(order, turned, rows, columns, alpha, b, ldb, x, step, beta, y, 1);
            }
        }
    } else {
        // SAFETY: the caller's own arguments.
        unsafe { (blas.gemm)(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc) };
    }
}
