package codectest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imagefs/codec"
)

// Tool is the path of an outside program. A missing one skips the test, and
// fails it where tools were demanded: with CI or IMAGEFS_REQUIRE_TOOLS set.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("CI") != "" || os.Getenv("IMAGEFS_REQUIRE_TOOLS") != "" {
		t.Fatalf("%s is not installed, and CI or IMAGEFS_REQUIRE_TOOLS demands it", name)
	}
	t.Skipf("%s is not installed", name)
	return ""
}

// Exec runs a tool and returns what it printed; a failure ends the test and
// shows the command and its output.
func Exec(t testing.TB, tool string, args ...string) string {
	t.Helper()
	out, err := exec.Command(Tool(t, tool), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", tool, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// WriteFile writes d to a sparse file at path: a raw file of a disk, or a laid
// out [codec.File] as it is.
func WriteFile(t testing.TB, path string, d codec.Disk) {
	t.Helper()
	if err := writeFile(path, d); err != nil {
		t.Fatalf("write %s: %v", path, err)
	}
}

func writeFile(path string, d codec.Disk) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	if err := f.Truncate(d.Size()); err != nil {
		return err
	}
	ctx := context.Background()
	buf := make([]byte, 1<<20)
	for e, err := range d.Extents(ctx, 0, d.Size()) {
		if err != nil {
			return err
		}
		if e.Zero {
			continue
		}
		for off := e.Off; off < e.Off+e.Len; {
			p := buf[:min(int64(len(buf)), e.Off+e.Len-off)]
			if n, err := d.ReadAt(ctx, p, off); n < len(p) {
				return fmt.Errorf("read at %#x: %w", off, err)
			}
			// A long run of zeros that is called data need not take space.
			if !codec.Empty(p) {
				if _, err := f.WriteAt(p, off); err != nil {
					return err
				}
			}
			off += int64(len(p))
		}
	}
	return nil
}

// ForTools are disks that outside programs read in moments, for a format with
// blocks of so many bytes.
func ForTools(block int64) []*Disk {
	return []*Disk{
		Example(),
		Empty(16 * mib),
		Empty(512),
		Full(512, 1),
		Full(5*mib+512, 1),
		LastSector(8*mib + 512),
		LastSector(3 * block),
		Full(3*mib+1001, 1),
		Alternating(6*mib, 64*kib),
		Alternating(6*block, block),
		Scattered(200*gib, 9, 1),
	}
}

// RawFile writes d as a sparse raw file in a directory of the test and returns
// its path.
func RawFile(t testing.TB, d *Disk) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), d.Name+".raw")
	WriteFile(t, path, d)
	return path
}

// Convert lets qemu-img make a file of a format from a raw file, with options
// such as "-c" or "-o", "subformat=fixed", and returns its path.
func Convert(t testing.TB, format, raw string, options ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "made."+format)
	args := append([]string{"convert", "-f", "raw", "-O", format}, options...)
	Exec(t, "qemu-img", append(args, raw, out)...)
	return out
}

// Compare lets qemu-img compare the guest bytes of a file with a raw file.
// The longer of the two may end in zeros.
func Compare(t testing.TB, format, file, raw string) {
	t.Helper()
	Exec(t, "qemu-img", "compare", "-f", format, "-F", "raw", file, raw)
}

// Check lets qemu-img check the tables of a file.
func Check(t testing.TB, format, file string) {
	t.Helper()
	Exec(t, "qemu-img", "check", "-f", format, file)
}

// SevenZip lets 7-Zip unpack the one disk in a file and compares it with a raw
// file; zeros may follow.
func SevenZip(t testing.TB, file, raw string) {
	t.Helper()
	want, err := os.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	cmd := exec.Command(Tool(t, "7zz"), "e", "-so", file)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	got, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	diff := sameStream(got, want)
	if err := cmd.Wait(); err != nil && diff == nil {
		t.Fatalf("7zz e -so %s: %v\n%s", file, err, stderr.String())
	}
	if diff != nil {
		t.Fatalf("7zz e -so %s: %v\n%s", file, diff, stderr.String())
	}
}

// sameStream compares got with want, which got may follow with zeros.
func sameStream(got, want io.Reader) error {
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := 0; ; {
		n, err := io.ReadFull(got, a)
		m, _ := io.ReadFull(want, b[:n])
		same := bytes.Equal(a[:m], b[:m]) && codec.Empty(a[m:n])
		for i := 0; !same && i < n; i++ {
			if w := b[i]; i < m && a[i] != w || i >= m && a[i] != 0 {
				io.Copy(io.Discard, got)
				return fmt.Errorf("first difference at %#x", off+i)
			}
		}
		off += n
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			if m, _ := io.ReadFull(want, b[:1]); m != 0 {
				return fmt.Errorf("ends at %#x, too early", off)
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}
