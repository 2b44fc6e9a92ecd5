package ova

import (
	"bytes"
	"fmt"
	"strings"

	"imagefs/codec"
)

// Namespaces of a descriptor.
const (
	nsOVF  = "http://schemas.dmtf.org/ovf/envelope/1"
	nsOVF2 = "http://schemas.dmtf.org/ovf/envelope/2"
	nsRASD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
	nsVSSD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"
	nsVMW  = "http://www.vmware.com/schema/ovf"
	nsVBox = "http://www.virtualbox.org/ovf/machine"
)

// streamOptimized is how a descriptor calls the format of the disks.
const streamOptimized = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"

// Resource types of items (CIM_ResourceAllocationSettingData.ResourceType).
const (
	typeCPU     = 3
	typeMemory  = 4
	typeSCSI    = 6
	typeNetwork = 10
	typeDisk    = 17
)

// Instance numbers of the items written.
const (
	idCPU        = 1
	idMemory     = 2
	idController = 3 // and the three behind it
	idNetwork    = 7
	idDisk       = 10 // and those behind it
)

// What is written where a machine does not say.
const (
	defaultCPUs   = 1
	defaultMemory = 1024 // MiB
)

// escaper writes text and attributes. What XML cannot hold does not pass
// [codec.Machine.Check].
var escaper = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "\t", "&#9;", "\n", "&#10;")

// writer writes XML, an element a line.
type writer struct {
	bytes.Buffer
	open []string
}

// attrs are "name", "value" pairs.
func (w *writer) tag(name, end string, attrs []string) {
	fmt.Fprintf(w, "%s<%s", strings.Repeat("  ", len(w.open)), name)
	for i := 0; i < len(attrs); i += 2 {
		fmt.Fprintf(w, ` %s="%s"`, attrs[i], escaper.Replace(attrs[i+1]))
	}
	w.WriteString(end)
}

func (w *writer) begin(name string, attrs ...string) {
	w.tag(name, ">\n", attrs)
	w.open = append(w.open, name)
}

func (w *writer) end() {
	name := w.open[len(w.open)-1]
	w.open = w.open[:len(w.open)-1]
	fmt.Fprintf(w, "%s</%s>\n", strings.Repeat("  ", len(w.open)), name)
}

func (w *writer) empty(name string, attrs ...string) { w.tag(name, "/>\n", attrs) }

func (w *writer) text(name string, v any) {
	w.tag(name, ">", nil)
	fmt.Fprintf(w, "%s</%s>\n", escaper.Replace(fmt.Sprint(v)), name)
}

// item writes rasd children, "name", value pairs, which the schema wants in
// alphabetical order.
func (w *writer) item(pairs ...any) {
	w.begin("Item")
	for i := 0; i < len(pairs); i += 2 {
		w.text("rasd:"+pairs[i].(string), pairs[i+1])
	}
	w.end()
}

// newDescriptor writes the descriptor of m and its disks, whose files are named.
// Attributes and elements have one order, lines end with LF: the text is a
// function of the arguments.
func newDescriptor(m *codec.Machine, disks []codec.PackDisk, names []string) ([]byte, error) {
	id, osType, err := system(m)
	if err != nil {
		return nil, err
	}
	w := new(writer)
	w.WriteString(`<?xml version="1.0" encoding="UTF-8"?>` + "\n")
	w.begin("Envelope", "xmlns", nsOVF, "xmlns:ovf", nsOVF, "xmlns:rasd", nsRASD, "xmlns:vmw", nsVMW, "xmlns:vssd", nsVSSD)
	w.begin("References")
	for i, d := range disks {
		w.empty("File", "ovf:href", names[i], "ovf:id", fmt.Sprintf("file%d", i), "ovf:size", fmt.Sprint(d.File.Size()))
	}
	w.end()
	w.begin("DiskSection")
	w.text("Info", "Virtual disks")
	for i, d := range disks {
		attrs := []string{
			"ovf:capacity", fmt.Sprint(codec.Up(d.Size, 512)), "ovf:capacityAllocationUnits", "byte",
			"ovf:diskId", fmt.Sprintf("vmdisk%d", i), "ovf:fileRef", fmt.Sprintf("file%d", i), "ovf:format", streamOptimized,
		}
		if d.Data > 0 {
			attrs = append(attrs, "ovf:populatedSize", fmt.Sprint(d.Data))
		}
		w.empty("Disk", attrs...)
	}
	w.end()
	w.begin("NetworkSection")
	w.text("Info", "Logical networks")
	w.begin("Network", "ovf:name", "nat")
	w.text("Description", "The nat network")
	w.end()
	w.end()
	w.begin("VirtualSystem", "ovf:id", m.Name)
	w.text("Info", "A virtual machine")
	w.text("Name", m.Name)
	if m.Description != "" {
		w.begin("AnnotationSection")
		w.text("Info", "Description of the machine")
		w.text("Annotation", m.Description)
		w.end()
	}
	attrs := []string{"ovf:id", fmt.Sprint(id)}
	if m.OSVersion != "" {
		attrs = append(attrs, "ovf:version", m.OSVersion)
	}
	if osType != "" {
		attrs = append(attrs, "vmw:osType", osType)
	}
	w.begin("OperatingSystemSection", attrs...)
	w.text("Info", "The guest operating system")
	if m.OS != "" {
		w.text("Description", m.OS)
	}
	w.end()
	w.hardware(m, len(disks))
	w.end()
	w.end()
	if w.Len() > maxDescriptor {
		return nil, fmt.Errorf("descriptor of %d bytes, longest is %d", w.Len(), maxDescriptor)
	}
	return w.Bytes(), nil
}

// hardware writes the section of the machine's devices.
func (w *writer) hardware(m *codec.Machine, disks int) {
	cpus, memory := m.CPUs, m.MemoryMiB
	if cpus == 0 {
		cpus = defaultCPUs
	}
	if memory == 0 {
		memory = defaultMemory
	}
	w.begin("VirtualHardwareSection")
	w.text("Info", "Virtual hardware")
	w.begin("System")
	w.text("vssd:ElementName", "Virtual Hardware Family")
	w.text("vssd:InstanceID", 0)
	w.text("vssd:VirtualSystemIdentifier", m.Name)
	w.text("vssd:VirtualSystemType", "vmx-10")
	w.end()
	w.item("AllocationUnits", "hertz * 10^6", "ElementName", fmt.Sprintf("%d virtual CPUs", cpus),
		"InstanceID", idCPU, "ResourceType", typeCPU, "VirtualQuantity", cpus)
	w.item("AllocationUnits", "byte * 2^20", "ElementName", fmt.Sprintf("%d MB of memory", memory),
		"InstanceID", idMemory, "ResourceType", typeMemory, "VirtualQuantity", memory)
	for c := range codec.Ceil(int64(disks), perController) {
		w.item("Address", c, "ElementName", fmt.Sprintf("SCSI controller %d", c),
			"InstanceID", idController+c, "ResourceSubType", "lsilogic", "ResourceType", typeSCSI)
	}
	w.item("AutomaticAllocation", true, "Connection", "nat", "ElementName", "Network adapter 0",
		"InstanceID", idNetwork, "ResourceSubType", "E1000", "ResourceType", typeNetwork)
	for i := range disks {
		c, at := i/perController, i%perController
		if at >= 7 {
			at++
		}
		w.item("AddressOnParent", at, "ElementName", fmt.Sprintf("Hard disk %d", i), "HostResource", fmt.Sprintf("ovf:/disk/vmdisk%d", i),
			"InstanceID", idDisk+i, "Parent", idController+c, "ResourceType", typeDisk)
	}
	if m.Firmware != "" {
		value := map[string]string{"bios": "bios", "uefi": "efi"}[m.Firmware]
		w.empty("vmw:Config", "ovf:required", "false", "vmw:key", "firmware", "vmw:value", value)
	}
	w.end()
}
