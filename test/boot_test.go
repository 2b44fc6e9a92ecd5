package test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestBoot boots a real guest from views under emulation. It reads its root
// file system through the mount, writes to a layer above, and powers off.
func TestBoot(t *testing.T) {
	qemu := tool(t, "qemu-system-x86_64")
	for _, name := range []string{"mmdebstrap", "mke2fs", "qemu-img"} {
		tool(t, name)
	}
	if testing.Short() {
		t.Skip("takes a minute, and at the first time builds the guest")
	}
	needFUSE(t)
	guest := strings.TrimSpace(output(t, "bash", "guest"))
	store := t.TempDir()
	storeAs(t, "qcow2_zstd", filepath.Join(guest, "disk.raw"), filepath.Join(store, "debian.qcow2"))
	m := Mount(t, store)

	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu, "-accel", "tcg", "-M", "q35", "-cpu", "max", "-m", "512",
		"-display", "none", "-monitor", "none", "-serial", "stdio", "-nic", "none", "-no-reboot",
		"-kernel", filepath.Join(guest, "kernel"), "-initrd", filepath.Join(guest, "initrd"),
		"-append", "root=/dev/vda rw console=ttyS0 quiet",
		"-drive", "format=vmdk,if=virtio,snapshot=on,file="+m.Path("images", "debian", "disk0.vmdk"))
	cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir()) // of the layer above
	var console logBuffer
	cmd.Stdout, cmd.Stderr = &console, &console
	if err := start(cmd, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("qemu: %v", err)
	}
	if !strings.Contains(console.String(), "GUEST-OK") {
		t.Errorf("the guest did not say GUEST-OK:\n%s", console.String())
	}
}
