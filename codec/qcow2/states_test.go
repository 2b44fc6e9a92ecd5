package qcow2

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// made makes an image with qemu-img create and changes it with qemu-io.
func made(t *testing.T, opts string, size string, commands ...string) string {
	t.Helper()
	codectest.Tool(t, "qemu-img")
	tool := codectest.Tool(t, "qemu-io")
	img := filepath.Join(t.TempDir(), "img.qcow2")
	args := []string{"create", "-q", "-f", "qcow2"}
	if opts != "" {
		args = append(args, "-o", opts)
	}
	codectest.Exec(t, "qemu-img", append(args, img, size)...)
	args = []string{"-f", "qcow2", "-d", "unmap"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	if len(commands) > 0 {
		// Its status is that of a signal after an abort.
		out, err := exec.Command(tool, append(args, img)...).CombinedOutput()
		if err != nil && commands[len(commands)-1] != "abort" {
			t.Fatalf("qemu-io %q: %v\n%s", args, err, out)
		}
	}
	return img
}

// asQemu opens an image and compares it with what qemu-img makes of it.
func asQemu(t *testing.T, img string) codec.Disk {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	codectest.Exec(t, "qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", img, raw)
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	d := open(t, codectest.File(t, img))
	checkContent(t, d, want)
	return d
}

func TestStates(t *testing.T) {
	for _, tt := range []struct {
		name, opts string
		commands   []string
	}{
		{"empty", "", nil},
		{"empty version 2", "compat=0.10", nil},
		{"zero clusters", "", []string{"write -P 1 0 1M", "write -z 128k 64k", "write -z -u 256k 128k", "write -z 2M 256k"}},
		{"preallocated zero clusters", "preallocation=metadata", []string{"write -P 1 0 1M", "write -z 128k 64k", "write -z 512k 64k"}},
		{"discarded", "", []string{"write -P 1 0 2M", "discard 128k 256k", "discard 1M 64k"}},
		{"discarded, version 2", "compat=0.10", []string{"write -P 1 0 2M", "discard 128k 256k"}},
		{"out of order", "cluster_size=4k", []string{"write -P 1 2M 8k", "write -P 2 1M 100k", "write -P 3 0 5k", "write -P 4 1M 4k"}},
		{"compressed and rewritten", "", []string{"write -c -P 1 0 64k", "write -c -P 2 64k 64k", "write -P 3 70k 512", "write -c -P 4 192k 64k"}},
		{"subclusters", "extended_l2=on,cluster_size=64k", []string{"write -P 1 2k 2k", "write -P 2 62k 6k", "write -z 130k 4k", "write -P 3 200k 100k", "write -z 210k 8k", "discard 240k 2k"}},
		{"subclusters, compressed", "extended_l2=on,cluster_size=128k,compression_type=zstd", []string{"write -c -P 1 0 128k", "write -P 2 256k 4k", "write -P 3 260k 512"}},
		{"subclusters of 2 MiB", "extended_l2=on,cluster_size=2M", []string{"write -P 1 3M 64k", "write -z 2M 128k"}},
		{"dirty", "lazy_refcounts=on", []string{"write -P 7 0 200k", "write -P 8 1M 64k", "abort"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			img := made(t, tt.opts, "4M", tt.commands...)
			if tt.name == "dirty" {
				b, err := os.ReadFile(img)
				if err != nil || be64(b[72:])&incDirty == 0 {
					t.Fatalf("the image is not dirty: %v", err)
				}
				d := open(t, codectest.File(t, img))
				p := make([]byte, 4<<20)
				if _, err := d.ReadAt(context.Background(), p, 0); err != nil || p[200<<10-1] != 7 || p[200<<10] != 0 || p[1<<20] != 8 {
					t.Errorf("dirty image: %v, or other content", err)
				}
				return
			}
			d := asQemu(t, img)
			if n := d.(codec.Noted).Notes(); len(n) > 0 {
				t.Errorf("notes %q", n)
			}
		})
	}
}

func TestSnapshotsAndBitmaps(t *testing.T) {
	img := made(t, "", "4M", "write -P 1 0 1M")
	codectest.Exec(t, "qemu-img", "snapshot", "-c", "one", img)
	codectest.Exec(t, "qemu-io", "-f", "qcow2", "-c", "write -P 2 512k 1M", img)
	codectest.Exec(t, "qemu-img", "snapshot", "-c", "two", img)
	codectest.Exec(t, "qemu-io", "-f", "qcow2", "-c", "write -P 3 0 64k", img)
	codectest.Exec(t, "qemu-img", "bitmap", "-f", "qcow2", "--add", img, "b")
	n := asQemu(t, img).(codec.Noted).Notes()
	if len(n) != 1 || !strings.Contains(n[0], "2 internal snapshots") {
		t.Errorf("notes %q", n)
	}
}

func TestRefusedImages(t *testing.T) {
	dir := t.TempDir()
	base := write(t, filepath.Join(dir, "base"), make([]byte, 1<<20))
	for _, tt := range []struct {
		name string
		args []string
		text string
	}{
		{"backing", []string{"-b", base, "-F", "raw"}, "backing file \"" + base + `"`},
		{"data file", []string{"-o", "data_file=" + filepath.Join(dir, "ext")}, "external data file \"" + filepath.Join(dir, "ext") + `"`},
		{"raw data file", []string{"-o", "data_file_raw=on,data_file=" + filepath.Join(dir, "ext2")}, "external data file"},
		{"LUKS", []string{"--object", "secret,id=s,data=x", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"}, "LUKS"},
		{"AES", []string{"--object", "secret,id=s,data=x", "-o", "encrypt.format=aes,encrypt.key-secret=s"}, "AES"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			img := filepath.Join(t.TempDir(), "img")
			codectest.Exec(t, "qemu-img", append(append([]string{"create", "-q", "-f", "qcow2"}, tt.args...), img, "1M")...)
			_, err := Format.Open(context.Background(), codectest.File(t, img))
			if !errors.Is(err, codec.ErrUnsupported) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %v, want unsupported with %q", err, tt.text)
			}
		})
	}
}
