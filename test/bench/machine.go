package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
)

// A machine is where a run was made. Compare numbers of one machine only.
type machine struct {
	CPUs    int               `json:"cpus"`
	Model   string            `json:"cpu"`
	Memory  int64             `json:"memory_bytes"`
	Kernel  string            `json:"kernel"`
	Go      string            `json:"go"`
	Load    []string          `json:"load"` // at the start and at the end, as /proc/loadavg has it
	Rivals  map[string]string `json:"rivals"`
	Scratch string            `json:"scratch"` // the kind of file system of the files
}

func thisMachine(dir string) machine {
	m := machine{CPUs: runtime.NumCPU(), Go: runtime.Version(), Kernel: firstLine("/proc/sys/kernel/osrelease"), Rivals: map[string]string{}}
	m.Model = field("/proc/cpuinfo", "model name")
	var kib int64
	if _, err := fmt.Sscan(field("/proc/meminfo", "MemTotal"), &kib); err == nil {
		m.Memory = kib << 10
	}
	m.loadNow()
	m.Scratch = "disk"
	var st syscall.Statfs_t
	const tmpfs = 0x01021994 // TMPFS_MAGIC of linux/magic.h
	if syscall.Statfs(dir, &st) == nil && st.Type == tmpfs {
		m.Scratch = "tmpfs"
	}
	for _, r := range rivals {
		if r.pkg == "" {
			continue
		}
		if v, err := exec.Command("dpkg-query", "-W", "-f", "${Version}", r.pkg).Output(); err == nil {
			m.Rivals[r.pkg] = string(v)
		}
	}
	return m
}

func (m *machine) loadNow() { m.Load = append(m.Load, firstLine("/proc/loadavg")) }

func (m machine) String() string {
	return fmt.Sprintf("%d x %s, %.1f GiB, Linux %s, %s, files on %s, load %s",
		m.CPUs, m.Model, float64(m.Memory)/(1<<30), m.Kernel, m.Go, m.Scratch, m.Load[len(m.Load)-1])
}

func firstLine(path string) string {
	b, _ := os.ReadFile(path)
	line, _, _ := strings.Cut(string(b), "\n")
	return line
}

// field is the value of the first line "NAME : VALUE" of a file.
func field(path, name string) string {
	b, _ := os.ReadFile(path)
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
