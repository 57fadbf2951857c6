/* SPDX-License-Identifier: BSD-2-Clause */
/* The domain as a hypervisor adapter takes it: what it has to know, in JSON. */
#include <config.h>

#include "vm.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int memory_bytes(const xmlNode *node, uint64_t *out, struct img_err *err)
{
	static const struct {
		const char *unit;
		uint64_t factor;
	} units[] = {{"b", 1},		 {"bytes", 1},	  {"KB", 1000},	    {"k", 1024},
		     {"KiB", 1024},	 {"MB", 1000000}, {"M", 1 << 20},   {"MiB", 1 << 20},
		     {"GB", 1000000000}, {"G", 1 << 30},  {"GiB", 1 << 30}, {"T", 1ull << 40},
		     {"TiB", 1ull << 40}};
	char *text = vm_text(node), *unit = vm_attr(node, "unit");
	uint64_t n = 0, factor = unit ? 0 : 1024;
	int ret = 0;

	for (size_t i = 0; unit && i < sizeof units / sizeof *units; i++)
		if (!strcmp(unit, units[i].unit))
			factor = units[i].factor;
	if (!text || vm_number(text + strspn(text, " \t\r\n"), &n) < 0 || n == 0 || factor == 0 ||
	    n > (UINT64_C(1) << 50) / factor)
		ret = img_err_set(err, IMG_DATA, "<memory%s%s>%s: not an amount of memory",
				  unit ? " unit=" : "", unit ? unit : "", text ? text : "");
	*out = n * factor;
	free(text);
	free(unit);
	return ret;
}

static int cpu_features(const xmlNode *cpu, char *buf, size_t size, struct img_err *err)
{
	for (xmlNode *f = vm_child(cpu, "feature"); f; f = vm_next(f)) {
		char *policy = vm_attr_or(f, "policy", "require"), *name = vm_attr(f, "name");
		bool on = policy && (!strcmp(policy, "require") || !strcmp(policy, "force"));
		size_t len = strlen(buf);
		int n = -1;

		if (policy && !strcmp(policy, "optional"))
			n = 0;
		else if (policy && name && vm_word_ok(name, "-_.", 64))
			n = snprintf(buf + len, size - len, ",%s=%s", name, on ? "on" : "off");
		free(policy);
		free(name);
		if (n < 0 || (size_t)n >= size - len)
			return img_err_set(err, IMG_DATA, "the list of CPU features is not usable");
	}
	return 0;
}

/* The CPU as QEMU's -cpu takes it. */
static int cpu_model(const struct vm_doc *vm, char *buf, size_t size, struct img_err *err)
{
	const xmlNode *cpu = vm_child(vm->domain, "cpu");
	char *mode = vm_attr(cpu, "mode"), *model = vm_text(vm_child(cpu, "model"));
	int ret = 0;

	if (mode && !strncmp(mode, "host-", 5)) {
		snprintf(buf, size, "host");
	} else {
		snprintf(buf, size, "%s", model ? model : VM_CPU);
		if (!vm_word_ok(buf, "-_.", 64))
			ret = img_err_set(err, IMG_DATA, "CPU model \"%s\" is not a name", buf);
	}
	free(mode);
	free(model);
	return ret < 0 ? -1 : cpu_features(cpu, buf, size, err);
}

static void put(json_t *o, const char *key, const char *value)
{
	json_object_set_new(o, key, value ? json_string(value) : json_null());
}

static json_t *disks_json(const struct vm_doc *vm)
{
	json_t *a = json_array();

	for (size_t i = 0; i < vm->ndisks; i++) {
		const struct vm_disk *d = &vm->disks[i];
		json_t *o = json_object();

		put(o, "target", d->target);
		put(o, "bus", d->bus);
		put(o, "source", d->source);
		put(o, "serial", d->serial);
		json_object_set_new(o, "readonly", json_boolean(d->readonly));
		json_object_set_new(o, "boot", json_integer((json_int_t)d->boot));
		json_array_append_new(a, o);
	}
	return a;
}

static json_t *nics_json(const struct vm_doc *vm)
{
	json_t *a = json_array();

	for (size_t i = 0; i < vm->nnics; i++) {
		const struct vm_nic *n = &vm->nics[i];
		json_t *o = json_object();

		put(o, "mac", n->mac);
		put(o, "type", n->type);
		put(o, "model", n->model);
		put(o, "network", n->network);
		json_object_set_new(o, "boot", json_integer((json_int_t)n->boot));
		json_array_append_new(a, o);
	}
	return a;
}

/* Devices that carry state or identity of the host they are on. */
static json_t *unmovable_json(const struct vm_doc *vm)
{
	static const char *const kinds[] = {"hostdev",	  "redirdev",  "tpm",	"shmem",
					    "filesystem", "smartcard", "nvram", "vsock"};
	const xmlNode *devices = vm_child(vm->domain, "devices"), *os = vm_child(vm->domain, "os");
	json_t *a = json_array();

	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
		if (vm_child(devices, kinds[i]))
			json_array_append_new(a, json_string(kinds[i]));
	if (vm_child(os, "loader") || vm_child(os, "nvram"))
		json_array_append_new(a, json_string("firmware"));
	for (xmlNode *n = vm_child(devices, "disk"); n; n = vm_next(n))
		if (!vm_is_disk(n) && vm_child(n, "source"))
			json_array_append_new(a, json_string("removable medium"));
	return a;
}

static json_t *boot_json(const struct vm_doc *vm)
{
	json_t *a = json_array();

	for (xmlNode *n = vm_child(vm_child(vm->domain, "os"), "boot"); n; n = vm_next(n)) {
		char *dev = vm_attr(n, "dev");

		if (dev)
			json_array_append_new(a, json_string(dev));
		free(dev);
	}
	return a;
}

static int machine_json(const struct vm_doc *vm, json_t *o, struct img_err *err)
{
	const xmlNode *os = vm_child(vm->domain, "os"), *type = vm_child(os, "type");
	char *machine = vm_attr_or(type, "machine", VM_MACHINE);
	char *arch = vm_attr_or(type, "arch", "x86_64");
	char *accel = vm_attr_or(vm->domain, "type", "qemu");
	int ret = 0;

	if (!machine || !arch || !accel)
		ret = vm_no_memory(err);
	else if (!vm_word_ok(machine, "-_.", 64))
		ret = img_err_set(err, IMG_DATA, "machine type \"%s\" is not a name", machine);
	else if (!vm_word_ok(arch, "_", 16))
		ret = img_err_set(err, IMG_DATA, "architecture \"%s\" is not a name", arch);
	put(o, "machine", machine);
	put(o, "arch", arch);
	put(o, "type", accel);
	free(machine);
	free(arch);
	free(accel);
	return ret;
}

static void text_json(json_t *o, const char *key, const xmlNode *node)
{
	char *s = vm_text(node);

	put(o, key, s);
	free(s);
}

json_t *vm_json(const struct vm_doc *vm, struct img_err *err)
{
	const xmlNode *os = vm_child(vm->domain, "os");
	json_t *o = json_object();
	char cpu[2048] = "", *vcpu = vm_text(vm_child(vm->domain, "vcpu"));
	uint64_t memory, cpus = 1;

	json_object_set_new(o, "version", json_integer(1));
	put(o, "name", vm->name);
	put(o, "uuid", vm->uuid);
	if (memory_bytes(vm_child(vm->domain, "memory"), &memory, err) < 0 ||
	    machine_json(vm, o, err) < 0 || cpu_model(vm, cpu, sizeof cpu, err) < 0)
		goto bad;
	if (vcpu &&
	    (vm_number(vcpu + strspn(vcpu, " \t\r\n"), &cpus) < 0 || cpus < 1 || cpus > 4096)) {
		img_err_set(err, IMG_DATA, "<vcpu>%s: not a number from 1 to 4096", vcpu);
		goto bad;
	}
	put(o, "cpu", cpu);
	json_object_set_new(o, "memory", json_integer((json_int_t)memory));
	json_object_set_new(o, "vcpus", json_integer((json_int_t)cpus));
	text_json(o, "kernel", vm_child(os, "kernel"));
	text_json(o, "initrd", vm_child(os, "initrd"));
	text_json(o, "cmdline", vm_child(os, "cmdline"));
	json_object_set_new(o, "boot", boot_json(vm));
	json_object_set_new(o, "disks", disks_json(vm));
	json_object_set_new(o, "nics", nics_json(vm));
	json_object_set_new(o, "unmovable", unmovable_json(vm));
	free(vcpu);
	return o;
bad:
	free(vcpu);
	json_decref(o);
	return NULL;
}
