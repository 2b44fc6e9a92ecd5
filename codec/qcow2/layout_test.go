package qcow2

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

func layout(t testing.TB, d codec.Disk) *codec.File {
	t.Helper()
	f, err := Format.Layout(context.Background(), d, codectest.TestFacts())
	if err != nil {
		t.Fatalf("Layout: %v", err)
	}
	return f
}

func TestFormat(t *testing.T) { codectest.Run(t, Format, codectest.Blocks(1<<16)) }

// The worked example: where everything is.
func TestLayoutExample(t *testing.T) {
	f := layout(t, codectest.Example())
	if f.Size() != 4915200 {
		t.Errorf("length %d, want 4915200", f.Size())
	}
	b, err := codectest.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		what      string
		off       int
		got, want uint64
	}{
		{"size", 24, be64(b[24:]), 128 << 20},
		{"l1_size", 36, uint64(be32(b[36:])), 1},
		{"L1", 40, be64(b[40:]), 196608},
		{"refcount table", 48, be64(b[48:]), 65536},
		{"refcount block", 65536, be64(b[65536:]), 131072},
		{"count of the last cluster", 131072 + 2*74, uint64(be32(b[131072+2*74:])), 1 << 16},
		{"L2", 196608, be64(b[196608:]), 262144 | entryCopied},
		{"first entry", 262144, be64(b[262144:]), 327680 | entryCopied},
	} {
		if tt.got != tt.want {
			t.Errorf("%s at %d: %#x, want %#x", tt.what, tt.off, tt.got, tt.want)
		}
	}
}

// The plan counts its own clusters at every size where a part grows.
func TestPlan(t *testing.T) {
	for _, size := range []int64{0, 512, 1 << 30, 1 << 42, 1<<51 - 512} {
		for _, n := range []int64{0, 1, layPerRC - 6, layPerRC - 5, layPerRC - 4, 8*layPerRC - 1, 8192*layPerRC - 8196, 8192*layPerRC - 8195, 1 << 34} {
			for _, l2 := range []int64{0, 1, 4 << 20} {
				p := makePlan(size, n, l2)
				if p.total != 1+p.rtLen+p.rcbLen+p.l1Len+l2+n || p.rcbLen*layPerRC < p.total || p.rtLen*layPerL2 < p.rcbLen || p.l1Len*layPerL2<<29 < size {
					t.Errorf("size %d, %d clusters, %d L2 tables: %+v", size, n, l2, p)
				}
			}
		}
	}
}

func TestLayoutTooLarge(t *testing.T) {
	_, err := Format.Layout(context.Background(), codectest.Empty(layMax+1), codec.Facts{})
	if !errors.Is(err, codec.ErrTooLarge) || !strings.Contains(err.Error(), "2251799813685248") {
		t.Errorf("error %v, want too large and the limit", err)
	}
}

// Outside readers agree with what is laid out.
func TestLayoutReaders(t *testing.T) {
	codectest.Tool(t, "qemu-img")
	codectest.Tool(t, "7zz")
	info := codectest.Tool(t, "qcowinfo")
	const mib, tib = 1 << 20, 1 << 40
	for _, d := range []*codectest.Disk{
		codectest.Empty(512),
		codectest.Empty(300 << 30),
		codectest.Example(),
		codectest.Full(5*mib, 1),
		codectest.Full(3*mib+1001, 2),
		codectest.LastSector(513*mib + 512),
		codectest.Alternating(9*mib, 64<<10),
		codectest.New("last group", 3<<30, 3, codectest.Range{Off: 3<<30 - 70000, Len: 70000}),
		codectest.Scattered(3*tib+512, 60, 4),
	} {
		t.Run(d.Name, func(t *testing.T) {
			t.Parallel()
			raw := codectest.RawFile(t, d)
			img := filepath.Join(t.TempDir(), "img.qcow2")
			codectest.WriteFile(t, img, layout(t, d))
			if out := codectest.Exec(t, "qemu-img", "check", "-f", "qcow2", img); !strings.Contains(out, "No errors were found") {
				t.Errorf("qemu-img check: %s", out)
			}
			codectest.Compare(t, "qcow2", img, raw)
			if out := codectest.Exec(t, info, img); !strings.Contains(out, "Format version") {
				t.Errorf("qcowinfo: %s", out)
			}
			if d.Size() < 1<<30 {
				codectest.SevenZip(t, img, raw)
			}
			if d.Size() <= 128*mib {
				mounted(t, img, raw)
			}
		})
	}
}

// mounted compares what libqcow makes of an image, where there is FUSE.
func mounted(t *testing.T, img, raw string) {
	t.Helper()
	tool, err := exec.LookPath("qcowmount")
	if err != nil {
		return
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return
	}
	dir := t.TempDir()
	if out, err := exec.Command(tool, img, dir).CombinedOutput(); err != nil {
		t.Errorf("qcowmount: %v\n%s", err, out)
		return
	}
	defer func() {
		if out, err := exec.Command("fusermount", "-u", dir).CombinedOutput(); err != nil {
			t.Errorf("fusermount: %v\n%s", err, out)
		}
	}()
	file := filepath.Join(dir, "qcow1")
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(file); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Errorf("qcowmount: %v", err)
			return
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Error(err)
	}
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Error(err)
	}
	if len(got) < len(want) || !bytes.Equal(got[:len(want)], want) || !codec.Empty(got[len(want):]) {
		t.Errorf("libqcow differs")
	}
}
