package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// The guest of the tests says this on its serial console when it is up.
const bootMarker = "GUEST-OK"

// boot compares the time until a guest is up that boots from a cold view with
// downloading and converting its disk first. Emulated, it takes minutes.
func (b *bench) boot() error {
	head(b.out, fmt.Sprintf("a guest boots from a cold vmdk view, S3 with %v added; fetched: bytes sent over bytes that the guest read", far))
	for _, p := range []string{"qemu-system-x86_64", "mmdebstrap"} {
		if _, err := exec.LookPath(p); err != nil {
			fmt.Fprintf(b.out, "  -  %s is not installed: test/install\n", p)
			return nil
		}
	}
	script := filepath.Join("test", "guest")
	made, err := exec.CommandContext(b.ctx, "bash", script).Output()
	if err != nil {
		fmt.Fprintf(b.out, "  -  no guest: %s: %v\n", script, err)
		return nil
	}
	guest := strings.TrimSpace(string(made))
	if err := os.MkdirAll(b.path("store"), 0o755); err != nil {
		return err
	}
	const key = "boots.qcow2"
	if err := b.command("qemu-img", "convert", "-f", "raw", "-O", "qcow2", filepath.Join(guest, "disk.raw"), b.path("store", key)); err != nil {
		return err
	}
	defer os.Remove(b.path("store", key))
	return b.served(far, func(s *s3peer) error {
		return b.hold(contest{
			part: "boot", name: "plain qcow2", store: s, most: 1.3, long: true,
			ours: func(t *turn) error {
				return t.boots(guest, func() (string, error) {
					mnt, err := t.mountS3(s)
					return disk(mnt, stem(key), "vmdk"), err
				})
			},
			entrants: []entrant{{rival: download, goal: 1, run: func(t *turn) error {
				return t.boots(guest, func() (string, error) {
					out := t.out()
					return out, t.fetchAndConvert(s, key, out, []string{"-O", "vmdk"})
				})
			}}},
		})
	}, key)
}

// boots times from nothing to a guest that is up, whose disk show provides.
func (t *turn) boots(guest string, show func() (string, error)) error {
	var read int64
	err := t.time("", func() error {
		path, err := show()
		if err != nil {
			return err
		}
		read, err = t.bootOne(guest, path)
		return err
	})
	if l, ok := t.laps[""]; ok {
		l.needed = read
		t.laps[""] = l
	}
	return err
}

// bootOne boots a guest from a disk until it is up and returns how much it read.
func (t *turn) bootOne(guest, path string) (read int64, err error) {
	tmp, err := t.folder("vm")
	if err != nil {
		return 0, err
	}
	control := filepath.Join(tmp, "qmp")
	cmd := exec.CommandContext(t.ctx, "qemu-system-x86_64", "-accel", "kvm", "-accel", "tcg", "-M", "q35", "-cpu", "max", "-m", "512",
		"-display", "none", "-monitor", "none", "-serial", "stdio", "-nic", "none", "-no-reboot",
		"-qmp", "unix:"+control+",server=on,wait=off",
		"-kernel", filepath.Join(guest, "kernel"), "-initrd", filepath.Join(guest, "initrd"),
		"-append", "root=/dev/vda rw console=ttyS0 quiet",
		"-drive", "format=vmdk,if=virtio,snapshot=on,file="+path)
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp) // of the layer above
	cmd.SysProcAttr = apart
	var errs bytes.Buffer
	cmd.Stderr = &errs
	console, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	up := false
	sc := bufio.NewScanner(console)
	for !up && sc.Scan() {
		up = strings.Contains(sc.Text(), bootMarker)
	}
	if up {
		read, err = blocksRead(control)
	} else {
		err = fmt.Errorf("the guest did not come up: %s", errs.Bytes())
	}
	_ = cmd.Process.Kill() // up is all that is wanted
	_, _ = io.Copy(io.Discard, console)
	_ = cmd.Wait()
	if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		t.largest = max(t.largest, u.Maxrss<<10)
	}
	return read, err
}

type blockDevice struct {
	Stats struct {
		Read int64 `json:"rd_bytes"`
	} `json:"stats"`
}

// blocksRead asks a running QEMU how many bytes its guest has read of its disk.
func blocksRead(control string) (int64, error) {
	c, err := net.Dial("unix", control)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return 0, err
	}
	if _, err := io.WriteString(c, `{"execute":"qmp_capabilities"}{"execute":"query-blockstats"}`); err != nil {
		return 0, err
	}
	// Answers may come between events; that to query-blockstats is a list.
	for d := json.NewDecoder(c); ; {
		var m struct {
			Return json.RawMessage `json:"return"`
			Error  json.RawMessage `json:"error"`
		}
		if err := d.Decode(&m); err != nil {
			return 0, err
		}
		if len(m.Error) > 0 {
			return 0, errors.New(string(m.Error))
		}
		var devices []blockDevice
		if json.Unmarshal(m.Return, &devices) == nil && len(devices) > 0 {
			var read int64
			for _, d := range devices {
				read = max(read, d.Stats.Read) // one has the guest's disk, the others none
			}
			return read, nil
		}
	}
}
