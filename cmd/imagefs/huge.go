package main

import (
	"runtime"
	"runtime/debug"
	"unsafe"

	"golang.org/x/sys/unix"
)

// preferHugePages asks the kernel for huge pages in memory bytes of the heap, or the
// first GiB of them, which the runtime does not: a mount touches as much memory as
// its cache has, and each page of 4 KiB costs a fault, on virtual machines several
// microseconds. Where the system gives huge pages never, or always, this changes
// nothing.
func preferHugePages(memory int64) {
	const huge = 2 << 20
	n := int(min(memory, 1<<30))
	b := make([]byte, n) // never touched; the heap keeps the addresses
	at := uintptr(unsafe.Pointer(&b[0]))
	skip := int(-at & (huge - 1))
	if n > skip+huge {
		_ = unix.Madvise(b[skip:skip+(n-skip)&^(huge-1)], unix.MADV_HUGEPAGE)
	}
	runtime.KeepAlive(b)
	debug.FreeOSMemory()
}
