package stage_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"imagefs/codec"
	"imagefs/codec/all"
	"imagefs/codec/codectest"
	"imagefs/fs/stage"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
	tib = 1 << 40
)

// maxHeap is what checking an image may allocate, of any kind, and watchdog
// ends a check that never would.
const (
	maxHeap  = 256 * mib
	watchdog = 5 * time.Minute
)

// kinds are the formats and their variants that qemu-img writes.
var kinds = []struct {
	name, format string
	options      []string
}{
	{"qcow2-v2", "qcow2", []string{"-o", "compat=0.10"}},
	{"qcow2-v3", "qcow2", nil},
	{"qcow2-zlib", "qcow2", []string{"-c"}},
	{"qcow2-zstd", "qcow2", []string{"-c", "-o", "compression_type=zstd"}},
	{"qcow2-extended-l2", "qcow2", []string{"-o", "extended_l2=on"}},
	{"qcow2-512", "qcow2", []string{"-o", "cluster_size=512"}},
	{"qcow2-2M", "qcow2", []string{"-o", "cluster_size=2M"}},
	{"qcow2-2M-zlib", "qcow2", []string{"-c", "-o", "cluster_size=2M"}},
	{"vmdk-sparse", "vmdk", nil},
	{"vmdk-stream", "vmdk", []string{"-o", "subformat=streamOptimized"}},
	{"vdi-dynamic", "vdi", nil},
	{"vdi-static", "vdi", []string{"-o", "static=on"}},
	{"vhd-dynamic", "vhd", nil},
	{"vhd-fixed", "vhd", []string{"-o", "subformat=fixed"}},
	{"vhdx-dynamic", "vhdx", []string{"-o", "block_size=1M"}},
	{"vhdx-fixed", "vhdx", []string{"-o", "subformat=fixed"}},
	{"qcow1", "qcow1", nil},
	{"qed", "qed", nil},
	{"qed-4k", "qed", []string{"-o", "cluster_size=4k,table_size=2"}},
	{"parallels", "parallels", nil},
	{"parallels-64k", "parallels", []string{"-o", "cluster_size=64k"}},
}

// qemuName is qemu's name of a format.
func qemuName(format string) string {
	switch format {
	case "vhd":
		return "vpc"
	case "qcow1":
		return "qcow"
	}
	return format
}

// guest is a disk of 32 MiB with 3 MiB of data, half of which compresses.
func guest(seed uint64) []byte {
	b := make([]byte, 32*mib+4*kib)
	for _, d := range []*codectest.Disk{
		codectest.New("hard", int64(len(b)), seed, codectest.Range{Off: 0, Len: 600 * kib},
			codectest.Range{Off: 9*mib + 300*kib, Len: 700 * kib}, codectest.Range{Off: 32 * mib, Len: 4 * kib}),
		codectest.New("soft", int64(len(b)), seed+1, codectest.Range{Off: 3 * mib, Len: 900 * kib},
			codectest.Range{Off: 20*mib + 8*kib, Len: 600 * kib}).Soft(),
	} {
		for _, r := range d.Runs() {
			d.ReadAt(context.Background(), b[r.Off:r.Off+r.Len], r.Off)
		}
	}
	for i := range 40 { // small islands, for small clusters and parts of large ones
		at := 24*mib + i*37*kib
		copy(b[at:at+512+i*20], b[i*5000:])
	}
	return b
}

// made is what qemu-img makes of the disk.
func made(t *testing.T, format string, disk []byte, options ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	raw, out := filepath.Join(dir, "raw"), filepath.Join(dir, "made")
	if err := writeSparse(raw, codectest.Bytes(disk)); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"convert", "-f", "raw", "-O", qemuName(format)}, options...)
	codectest.Exec(t, "qemu-img", append(args, raw, out)...)
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// writeSparse writes src to a file and leaves its zeros out.
func writeSparse(path string, src codec.Source) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 64*kib)
	for off := int64(0); off < src.Size(); {
		p := buf[:min(int64(len(buf)), src.Size()-off)]
		if n, err := src.ReadAt(context.Background(), p, off); n < len(p) {
			return fmt.Errorf("read at %#x: %d, %w", off, n, err)
		}
		if !codec.Empty(p) {
			if _, err := f.WriteAt(p, off); err != nil {
				return err
			}
		}
		off += int64(len(p))
	}
	return f.Truncate(src.Size())
}

// damaged is a file with some bytes replaced, cut at its size. It remembers a
// read that is not wholly inside: a reader checks before it reads.
type damaged struct {
	base    []byte
	size    int64
	patches []patch
	outside atomic.Pointer[string]
}

type patch struct {
	off int64
	b   []byte
}

func (d *damaged) Size() int64 { return d.size }

func (d *damaged) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > d.size {
		s := fmt.Sprintf("read of %d bytes at %d of a file of %d", len(p), off, d.size)
		d.outside.Store(&s)
		return 0, io.ErrUnexpectedEOF
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	copy(p, d.base[off:])
	for _, x := range d.patches {
		if lo, hi := max(off, x.off), min(off+int64(len(p)), x.off+int64(len(x.b))); lo < hi {
			copy(p[lo-off:hi-off], x.b[lo-x.off:])
		}
	}
	return len(p), nil
}

func (d *damaged) bytes(off, n int64) []byte {
	b := make([]byte, n)
	d.ReadAt(context.Background(), b, off)
	return b
}

func (d *damaged) put(off int64, b []byte) { d.patches = append(d.patches, patch{off, b}) }

// cost is the most that checking any image took.
type cost struct {
	heap, time     atomic.Int64
	heapOf, timeOf atomic.Pointer[string]
}

func (c *cost) add(heap int64, d time.Duration, what string) {
	if heap > c.heap.Load() {
		c.heap.Store(heap)
		c.heapOf.Store(&what)
	}
	if int64(d) > c.time.Load() {
		c.time.Store(int64(d))
		c.timeOf.Store(&what)
	}
}

func (c *cost) log(t *testing.T) {
	if c.heapOf.Load() != nil {
		t.Logf("at most %.1f MiB allocated (%s), %v (%s)", float64(c.heap.Load())/mib, *c.heapOf.Load(),
			time.Duration(c.time.Load()).Round(time.Millisecond), *c.timeOf.Load())
	}
}

func heapAllocs() int64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64())
}

// check does what an import does: the content must be of the promised format,
// and sound. A refusal must be one, with a text that says what is wrong.
func check(t *testing.T, format string, src codec.Source, c *cost, what string) (codec.Disk, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), watchdog)
	defer cancel()
	before, start := heapAllocs(), time.Now()
	d, err := func() (codec.Disk, error) {
		f, err := stage.Detect(ctx, all.Formats, src)
		if err != nil {
			return nil, err
		}
		if f.Name() != format {
			return nil, fmt.Errorf("%w: content is %s", codec.ErrFormat, f.Name())
		}
		return stage.Validate(ctx, f, src)
	}()
	heap := heapAllocs() - before
	c.add(heap, time.Since(start), what)
	if heap > maxHeap {
		t.Errorf("%s: checking allocated %d bytes", what, heap)
	}
	if ctx.Err() != nil {
		t.Errorf("%s: still checking after %v", what, watchdog)
	}
	if err != nil && (!codectest.Clean(err) || len(err.Error()) < 25) {
		t.Errorf("%s: %q is no clean refusal", what, err)
	}
	if d, ok := src.(*damaged); ok && d.outside.Load() != nil {
		t.Errorf("%s: %s", what, *d.outside.Load())
	}
	return d, err
}

// flips is how many random damages each kind of image is given: a sample, or
// as many as IMAGEFS_HOSTILE_FLIPS says.
func flips(t *testing.T) int {
	if s := os.Getenv("IMAGEFS_HOSTILE_FLIPS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("IMAGEFS_HOSTILE_FLIPS: %v", err)
		}
		return n
	}
	if testing.Short() {
		return 5
	}
	return 25 / codectest.Thin(3) // all of them in the run without the race detector
}

// seed is that of the random damages. A sample is the same in every run, so that
// a run says something about the change that it tests; many are others in every
// run, or those of the seed that failed.
func seed(t *testing.T) uint64 {
	n := uint64(1)
	if os.Getenv("IMAGEFS_HOSTILE_FLIPS") != "" {
		n = uint64(time.Now().UnixNano())
	}
	if s := os.Getenv("IMAGEFS_HOSTILE_SEED"); s != "" {
		var err error
		if n, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("IMAGEFS_HOSTILE_SEED: %v", err)
		}
	}
	t.Logf("IMAGEFS_HOSTILE_SEED=%d", n)
	return n
}

// TestDamagedImages: an image that is cut short, or has any wrong bytes, is
// refused or is read as qemu-img reads it. Where only qemu-img refuses, the
// damage must not have touched the guest's bytes.
func TestDamagedImages(t *testing.T) {
	codectest.Tool(t, "qemu-img")
	n, s := flips(t), seed(t)
	disk, other := guest(1), guest(77)
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			b := made(t, k.format, disk, k.options...)
			m := findMeta(b, made(t, k.format, other, k.options...))
			o := newOracle(t, k.format, b, disk)
			for i, cut := range cuts(int64(len(b)), m) {
				if i%codectest.Thin(3) != 0 {
					continue
				}
				o.try(&damaged{base: b, size: cut}, fmt.Sprintf("cut to %d of %d bytes", cut, len(b)))
			}
			r := rand.New(rand.NewPCG(s, uint64(len(k.name))))
			for range n {
				d, what := hurt(r, k.format, b, m)
				o.try(d, what)
			}
			o.finish()
		})
	}
}

// oracle compares what is accepted with what qemu-img makes of it.
type oracle struct {
	t       *testing.T
	format  string
	want    []byte // the guest of the undamaged image
	cost    cost
	jobs    chan job
	wg      sync.WaitGroup
	refused int
	same    atomic.Int64 // read as qemu does
	sound   atomic.Int64 // refused by qemu, and the guest is untouched
}

type job struct {
	src  *damaged
	disk codec.Disk
	what string
}

func newOracle(t *testing.T, format string, b, disk []byte) *oracle {
	t.Helper()
	o := &oracle{t: t, format: format, want: disk, jobs: make(chan job)}
	d, err := check(t, format, &damaged{base: b, size: int64(len(b))}, &o.cost, "undamaged")
	if err != nil {
		t.Fatalf("undamaged: %v", err)
	}
	if err := sameBytes(part{d, int64(len(disk))}, disk); err != nil {
		t.Fatalf("undamaged: %v", err)
	}
	// A format may round the size up.
	o.want = append(bytes.Clone(disk), make([]byte, d.Size()-int64(len(disk)))...)
	for range 2 {
		dir := t.TempDir()
		o.wg.Go(func() {
			for j := range o.jobs {
				if err := o.compare(dir, j); err != nil {
					t.Errorf("%s: %v", j.what, err)
				}
			}
		})
	}
	return o
}

func (o *oracle) try(src *damaged, what string) {
	d, err := check(o.t, o.format, src, &o.cost, what)
	if err != nil {
		o.refused++
		return
	}
	o.jobs <- job{src, d, what}
}

func (o *oracle) finish() {
	close(o.jobs)
	o.wg.Wait()
	o.t.Logf("%d refused, %d read as qemu-img does, %d read whole where qemu-img refuses", o.refused, o.same.Load(), o.sound.Load())
	o.cost.log(o.t)
}

// compare is nil when the disk of an accepted image is what it must be.
func (o *oracle) compare(dir string, j job) error {
	in, out := filepath.Join(dir, "damaged"), filepath.Join(dir, "out")
	if err := writeSparse(in, j.src); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), watchdog)
	defer cancel()
	args := []string{"convert", "-f", qemuName(o.format), "-O", "raw", in, out}
	have := j.disk.Size()
	if have > 4*int64(len(o.want)) { // a size that was hit: what qemu-img dd reads is enough
		have = codec.Up(int64(len(o.want))+mib, 4*mib) // and whole blocks
		args = []string{"dd", "-f", qemuName(o.format), "-O", "raw", "bs=1M", fmt.Sprintf("count=%d", have/mib), "if=" + in, "of=" + out}
		for e, err := range j.disk.Extents(ctx, have, j.disk.Size()) {
			if err == nil && !e.Zero {
				err = fmt.Errorf("data")
			}
			if err != nil {
				return fmt.Errorf("extent %+v behind the disk's old end: %w", e, err)
			}
		}
	}
	os.Remove(out)
	text, err := exec.CommandContext(ctx, "qemu-img", args...).CombinedOutput()
	if err != nil {
		if werr := sameBytes(j.disk, o.want); werr != nil {
			return fmt.Errorf("accepted, but qemu-img says %q, and %w", strings.TrimSpace(string(text)), werr)
		}
		o.sound.Add(1)
		return nil
	}
	got, err := os.ReadFile(out)
	if err != nil {
		return err
	}
	if size := int64(len(got)); size != codec.Up(have, 512) && have == j.disk.Size() {
		return fmt.Errorf("disk of %d bytes, qemu-img reads %d", have, size)
	}
	if err := sameBytes(part{j.disk, have}, got[:min(have, int64(len(got)))]); err != nil {
		return fmt.Errorf("unlike qemu-img: %w", err)
	}
	o.same.Add(1)
	return nil
}

// sameBytes compares all of src with want.
func sameBytes(src codec.Source, want []byte) error {
	if src.Size() != int64(len(want)) {
		return fmt.Errorf("disk of %d bytes, want %d", src.Size(), len(want))
	}
	buf := make([]byte, 256*kib)
	for off := int64(0); off < src.Size(); {
		p := buf[:min(int64(len(buf)), src.Size()-off)]
		if n, err := src.ReadAt(context.Background(), p, off); n < len(p) {
			return fmt.Errorf("read at %#x: %d, %w", off, n, err)
		}
		if w := want[off : off+int64(len(p))]; !bytes.Equal(p, w) {
			for i := range p {
				if p[i] != w[i] {
					return fmt.Errorf("byte %#x is %#02x, want %#02x", off+int64(i), p[i], w[i])
				}
			}
		}
		off += int64(len(p))
	}
	return nil
}

// part is the first n bytes of a disk.
type part struct {
	codec.Source
	n int64
}

func (p part) Size() int64 { return p.n }
