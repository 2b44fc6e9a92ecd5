package stage_test

import (
	"bytes"
	"compress/flate"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"sync/atomic"
	"testing"
	"time"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// bomb is a qcow2 of n compressed clusters, each its own copy of payload.
func bomb(bits uint, zstd bool, n int64, payload []byte) []byte {
	cluster := int64(1) << bits
	per := cluster / 8
	tables := codec.Ceil(n, per)
	const l1 = 1
	data := (l1 + codec.Ceil(8*tables, cluster) + tables) * cluster
	b := make([]byte, data+n*int64(len(payload)))
	copy(b, "QFI\xfb")
	be.PutUint32(b[4:], 3)
	be.PutUint32(b[20:], uint32(bits))
	be.PutUint64(b[24:], uint64(n*cluster))
	be.PutUint32(b[36:], uint32(tables))
	be.PutUint64(b[40:], uint64(l1*cluster))
	be.PutUint32(b[96:], 4)
	be.PutUint32(b[100:], 112)
	if zstd {
		be.PutUint64(b[72:], 8)
		b[104] = 1
	}
	first := (l1 + codec.Ceil(8*tables, cluster)) * cluster
	for i := range tables {
		be.PutUint64(b[l1*cluster+8*i:], uint64(first+i*cluster)|1<<63)
	}
	for i := range n {
		at := data + i*int64(len(payload))
		copy(b[at:], payload)
		sectors := (at%512 + int64(len(payload)) - 1) / 512
		be.PutUint64(b[first+8*i:], 1<<62|uint64(sectors)<<(62-(bits-8))|uint64(at))
	}
	return b
}

// deflated is n zeros as qcow2 compresses them.
func deflated(n int) []byte {
	var b bytes.Buffer
	w, _ := flate.NewWriter(&b, flate.BestCompression)
	w.Write(make([]byte, n))
	w.Close()
	return b.Bytes()
}

// zstandard is n zeros in a frame of blocks of 128 KiB, each a repeated byte.
func zstandard(n int) []byte {
	b := []byte("\x28\xb5\x2f\xfd\x00\x58") // a window of 2 MiB
	for ; n > 0; n -= 128 * kib {
		size := min(n, 128*kib)
		h := uint32(size)<<3 | 1<<1
		if n <= 128*kib {
			h |= 1
		}
		b = append(b, byte(h), byte(h>>8), byte(h>>16), 0)
	}
	return b
}

// peak returns the most bytes of live and not yet collected objects while f
// runs, beyond those before.
func peak(f func()) int64 {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	read := func() int64 { metrics.Read(s); return int64(s[0].Value.Uint64()) }
	runtime.GC()
	before := read()
	var most int64
	var done atomic.Bool
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for !done.Load() {
			most = max(most, read()-before)
			<-tick.C
		}
	}()
	f()
	done.Store(true)
	<-stopped
	return most
}

// TestBombs: a small file that decodes to a large disk takes little memory, and
// a time that its own size bounds.
func TestBombs(t *testing.T) {
	size := int64(64 * mib) // decoding is slow under the race detector
	if os.Getenv("IMAGEFS_HOSTILE_FLIPS") != "" {
		size = 10 * gib
	}
	for _, x := range []struct {
		name    string
		bits    uint
		zstd    bool
		payload []byte
	}{
		{"zlib", 16, false, deflated(64 * kib)},
		{"zlib, 2 MiB", 21, false, deflated(2 * mib)},
		{"zstd", 16, true, zstandard(64 * kib)},
		{"zstd, 2 MiB", 21, true, zstandard(2 * mib)},
	} {
		t.Run(x.name, func(t *testing.T) {
			b := bomb(x.bits, x.zstd, size>>x.bits, x.payload)
			var c cost
			start := time.Now()
			most := peak(func() {
				if _, err := check(t, "qcow2", &damaged{base: b, size: int64(len(b))}, &c, x.name); err != nil {
					t.Error(err) // it is sound, after all
				}
			})
			t.Logf("%.1f MiB that decode to %d MiB: %v, %.1f MiB of memory", float64(len(b))/mib, size/mib, time.Since(start).Round(time.Millisecond), float64(most)/mib)
			if most > maxHeap {
				t.Errorf("%d bytes of memory", most)
			}
		})
	}
}

// TestHugeDisks: the size that a header claims costs nothing by itself.
func TestHugeDisks(t *testing.T) {
	for _, x := range []struct {
		name, format, size string
		options            []string
	}{
		{"qcow2, 128 TiB", "qcow2", "128T", nil},
		{"qcow2, 128 TiB in clusters of 2 MiB", "qcow2", "128T", []string{"-o", "cluster_size=2M"}},
		{"qcow2, 16 GiB in clusters of 512 bytes", "qcow2", "16G", []string{"-o", "cluster_size=512"}},
		{"vmdk, 2 TiB", "vmdk", "2T", nil},
		{"vmdk stream, 2 TiB", "vmdk", "2T", []string{"-o", "subformat=streamOptimized"}},
		{"vdi, 4 TiB", "vdi", "4T", nil},
		{"vhd, 2040 GiB", "vhd", "2040G", []string{"-o", "force_size=on"}},
		{"vhdx, 64 TiB", "vhdx", "64T", nil},
		{"vhdx, 16 TiB in blocks of 1 MiB", "vhdx", "16T", []string{"-o", "block_size=1M"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk")
			codectest.Exec(t, "qemu-img", append(append([]string{"create", "-q", "-f", qemuName(x.format)}, x.options...), path, x.size)...)
			var c cost
			src := codectest.File(t, path)
			d, err := check(t, x.format, src, &c, x.name)
			if err != nil {
				t.Fatal(err)
			}
			es, err := codectest.Extents(d)
			if err != nil || len(es) != 1 || !es[0].Zero {
				t.Errorf("extents %v, %v, want one of zeros", es, err)
			}
			t.Logf("a file of %.1f MiB", float64(src.Size())/mib)
			c.log(t)
		})
	}
	t.Run("tables that are not there", func(t *testing.T) {
		codectest.Tool(t, "qemu-img")
		var c cost
		disk := guest(1)
		for _, x := range []struct {
			made, format string
			spoil        func(b []byte) []byte
		}{
			{"qcow2-v3", "qcow2", in(func(b []byte) { be.PutUint64(b[24:], 128*tib); be.PutUint32(b[36:], 262144) })},
			{"vmdk-sparse", "vmdk", text("RW 65544 ", "RW 274877906944 ")},
			{"vdi-dynamic", "vdi", in(func(b []byte) { le.PutUint64(b[368:], 128*tib); le.PutUint32(b[384:], 128<<20) })},
			{"vhdx-dynamic", "vhdx", in(func(b []byte) { le.PutUint64(item(b, 0x24), 64*tib) })},
		} {
			for _, k := range kinds {
				if k.name != x.made {
					continue
				}
				b := x.spoil(made(t, k.format, disk, k.options...))
				if x.format == "vmdk" {
					le.PutUint64(b[12:], 128*tib/512)
				}
				if d, err := check(t, x.format, &damaged{base: b, size: int64(len(b))}, &c, x.made); err == nil {
					t.Errorf("%s: a disk of %d bytes", x.made, d.Size())
				}
			}
		}
		c.log(t)
	})
	t.Run("a sparse raw file of 8 TiB", func(t *testing.T) {
		f, err := os.Create(filepath.Join(t.TempDir(), "raw"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(8 * tib); err != nil {
			t.Fatal(err)
		}
		var c cost
		d, err := check(t, "raw", codectest.File(t, f.Name()), &c, "raw")
		if err != nil || d.Size() != 8*tib {
			t.Errorf("%v, %v", d, err)
		}
		c.log(t)
	})
}
