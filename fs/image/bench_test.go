package image_test

import (
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"imagefs/codec/codectest"
	"imagefs/remote"
	"imagefs/remote/mem"
)

// realBytes writes n bytes of real files to path: what compressors meet.
func realBytes(b *testing.B, path string, n int64) {
	b.Helper()
	out, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer out.Close()
	_ = filepath.WalkDir("/usr", func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		in, err := os.Open(p)
		if err != nil {
			return nil
		}
		defer in.Close()
		m, _ := io.Copy(out, io.LimitReader(in, n))
		if n -= m; n <= 0 {
			return filepath.SkipAll
		}
		return nil
	})
}

// local is a store whose bytes are on this machine, as a directory's are.
type local struct{ remote.Store }

func (local) Local() bool { return true }

// BenchmarkSequential reads a disk from end to end as raw, in requests of the
// kernel's size: what a cp costs before FUSE.
func BenchmarkSequential(b *testing.B) {
	qemu := codectest.Tool(b, "qemu-img")
	store, raw := b.TempDir(), filepath.Join(b.TempDir(), "raw")
	realBytes(b, raw, 256<<20)
	for _, k := range []struct {
		name string
		args []string
	}{
		{"plain", nil},
		{"zlib", []string{"-c"}},
		{"zstd", []string{"-c", "-o", "compression_type=zstd"}},
	} {
		b.Run(k.name, func(b *testing.B) {
			args := append([]string{"convert", "-f", "raw", "-O", "qcow2"}, k.args...)
			if out, err := exec.Command(qemu, append(args, raw, filepath.Join(store, k.name+".qcow2"))...).CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
			data, err := os.ReadFile(filepath.Join(store, k.name+".qcow2"))
			if err != nil {
				b.Fatal(err)
			}
			s := local{mem.New()}
			put(b, s, k.name+".qcow2", data)
			buf := make([]byte, 1<<20)
			b.ReportAllocs()
			b.ResetTimer()
			for b.Loop() {
				o, cat := opener(b, s, 0) // a new cache each time
				d, err := open(b, o, cat, k.name)
				if err != nil {
					b.Fatal(err)
				}
				f, err := d.File(b.Context(), format(b, "raw"))
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(f.Size())
				for off := int64(0); off < f.Size(); off += int64(len(buf)) {
					if _, err := f.ReadAt(b.Context(), buf, off); err != nil && err != io.EOF {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
