/* SPDX-License-Identifier: BSD-2-Clause */
/* A VM's configuration, its disks' identities and its state as one XML document on stdout. */
#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "vm.h"

static const char help[] =
	"Usage: vm-export [OPTION]... VM\n"
	"Writes the configuration of the virtual machine VM to stdout, for vm-import.\n"
	"\n"
	"      --hypervisor=H    ask the adapter hv-H (default: qemu)\n"
	"      --secrets         passwords and keys as well\n"
	"      --parent-dir=DIR  parents of a disk may lie below DIR\n"
	"      --parent-anywhere parents of a disk may lie anywhere\n"
	"      --progress=json   accepted, without effect\n"
	"  -q, --quiet           no messages but errors\n"
	"  -h, --help            this text\n"
	"  -V, --version         the version\n";

enum { OPT_HYPERVISOR = CLI_TOOL, OPT_SECRETS };

struct exporter {
	struct cli_common common;
	const char *hypervisor, *name;
	bool secrets;
	json_t *status; /* what the adapter says of the VM */
	struct vm_doc vm;
	xmlDoc *doc;
};

static const char *str(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));

	return s ? s : "";
}

/* ---- what the adapter knows ---- */

static int ask(const struct exporter *ex, const char **argv, char **out, size_t *len,
	       struct img_err *err)
{
	const char *verb = argv[1];
	int status;

	if (vm_adapter(ex->hypervisor, argv, NULL, 0, out, len, &status, err) < 0)
		return -1;
	if (status == 0)
		return 0;
	free(*out);
	*out = NULL;
	return img_err_set(err, status, "hv-%s %s failed (exit status %d)", ex->hypervisor, verb,
			   status);
}

static int ask_status(struct exporter *ex, struct img_err *err)
{
	const char *argv[] = {NULL, "status", "--json", "--quiet", "--", ex->name, NULL};
	json_error_t je;
	char *out;
	size_t len;

	if (ask(ex, argv, &out, &len, err) < 0)
		return -1;
	ex->status = json_loadb(out, len, 0, &je);
	free(out);
	if (!json_is_object(ex->status) ||
	    json_integer_value(json_object_get(ex->status, "version")) != 1)
		return img_err_set(err, IMG_PROTO, "hv-%s status: not the JSON that was expected",
				   ex->hypervisor);
	return 0;
}

static int ask_domain(struct exporter *ex, struct img_err *err)
{
	const char *argv[] = {NULL, "dumpxml", "--leaves", "--", ex->name, NULL};
	char *out;
	size_t len;
	int ret;

	if (ask(ex, argv, &out, &len, err) < 0)
		return -1;
	ret = vm_parse(&ex->vm, out, len, "the adapter's domain", err);
	free(out);
	return ret;
}

/* Where the VM's disks may have their parents, besides what the command line allows. */
static void allow_parents(struct exporter *ex)
{
	static const char *dirs[64];
	const struct img_open *open = &ex->common.open;
	size_t n = open->nparent_dirs < 64 ? open->nparent_dirs : 64, i;
	json_t *dir;

	for (i = 0; i < n; i++)
		dirs[i] = open->parent_dirs[i];
	json_array_foreach(json_object_get(ex->status, "parent_dirs"), i,
			   dir) if (n < 64 && json_is_string(dir)) dirs[n++] =
		json_string_value(dir);
	ex->common.open.parent_dirs = dirs;
	ex->common.open.nparent_dirs = n;
}

/* ---- secrets ---- */

static bool is_secret(const xmlNode *n)
{
	static const char *const names[] = {"secret", "auth", "launchSecurity", "commandline"};

	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		if (!strcmp((const char *)n->name, names[i]))
			return true;
	return false;
}

static void drop_secrets(xmlNode *n)
{
	while (n) {
		xmlNode *next = n->next;

		if (n->type == XML_ELEMENT_NODE && is_secret(n)) {
			xmlUnlinkNode(n);
			xmlFreeNode(n);
		} else if (n->type == XML_ELEMENT_NODE) {
			xmlUnsetProp(n, (const xmlChar *)"passwd");
			xmlUnsetProp(n, (const xmlChar *)"password");
			drop_secrets(n->children);
		}
		n = next;
	}
}

/* ---- the document ---- */

static xmlNode *add(xmlNode *parent, const char *name, struct img_err *err)
{
	xmlNode *n = xmlNewChild(parent, parent->ns, (const xmlChar *)name, NULL);

	if (!n)
		vm_no_memory(err);
	return n;
}

static int add_text(xmlNode *parent, const char *name, const char *text, struct img_err *err)
{
	xmlNode *n = add(parent, name, err);

	if (!n)
		return -1;
	return vm_set_text(parent, name, text, err);
}

static int add_number(xmlNode *n, const char *attr, uint64_t value, struct img_err *err)
{
	char s[32];

	snprintf(s, sizeof s, "%" PRIu64, value);
	return vm_set_attr(n, attr, s, err);
}

static int add_layer(xmlNode *disk, const struct img_chain *c, unsigned l, struct img_err *err)
{
	const struct img_info *info = img_layer_info(c, l);
	xmlNode *n = add(disk, "layer", err);
	char uuid[IMG_UUID_STR];

	if (!n || vm_set_attr(n, "file", img_layer_real(c, l), err) < 0 ||
	    vm_set_attr(n, "format", info->format, err) < 0 ||
	    vm_set_attr(n, "type", img_type_name(info->type), err) < 0 ||
	    add_number(n, "size", info->size, err) < 0 ||
	    add_number(n, "allocated", info->allocated, err) < 0)
		return -1;
	if (!info->has_uuid)
		return 0;
	img_uuid_str(info->uuid, uuid);
	return vm_set_attr(n, "uuid", uuid, err);
}

static int add_disk(const struct exporter *ex, xmlNode *disks, const json_t *record,
		    struct img_err *err)
{
	const char *leaf = str(record, "leaf");
	struct img_open open = ex->common.open;
	struct img_chain *c = NULL;
	char uuid[IMG_UUID_STR];
	xmlNode *n;
	int ret = -1;

	/* The VM may be running, and writes to it: its locks are not for us. */
	open.unlocked = true;
	if (img_open(&c, leaf, &open, err) < 0)
		return -1;
	n = add(disks, "disk", err);
	if (!n || vm_set_attr(n, "target", str(record, "target"), err) < 0 ||
	    vm_set_attr(n, "leaf", leaf, err) < 0 || add_number(n, "size", img_size(c), err) < 0)
		goto out;
	if (img_layer_info(c, 0)->has_uuid) {
		img_uuid_str(img_layer_info(c, 0)->uuid, uuid);
		if (vm_set_attr(n, "uuid", uuid, err) < 0)
			goto out;
	}
	for (unsigned l = 0; l < img_layers(c); l++)
		if (add_layer(n, c, l, err) < 0)
			goto out;
	ret = 0;
out:
	img_close(c);
	return ret;
}

static int add_disks(const struct exporter *ex, xmlNode *root, struct img_err *err)
{
	xmlNode *disks = add(root, "disks", err);
	json_t *record;
	size_t i;

	if (!disks)
		return -1;
	json_array_foreach(json_object_get(ex->status, "disks"), i,
			   record) if (add_disk(ex, disks, record, err) < 0) return -1;
	return 0;
}

static int add_networks(const struct exporter *ex, xmlNode *root, struct img_err *err)
{
	xmlNode *networks = add(root, "networks", err);

	if (!networks)
		return -1;
	for (size_t i = 0; i < ex->vm.nnics; i++) {
		const struct vm_nic *nic = &ex->vm.nics[i];
		xmlNode *n = add(networks, "network", err);

		if (!n || (nic->mac && vm_set_attr(n, "mac", nic->mac, err) < 0) ||
		    vm_set_attr(n, "type", nic->type, err) < 0 ||
		    (nic->network && vm_set_attr(n, "name", nic->network, err) < 0))
			return -1;
	}
	return 0;
}

static int add_flag(const struct exporter *ex, xmlNode *root, const char *name, struct img_err *err)
{
	bool on = json_is_true(json_object_get(ex->status, name));

	return add_text(root, name, on ? "true" : "false", err);
}

static int add_domain(struct exporter *ex, xmlNode *root, struct img_err *err)
{
	xmlNode *domain = xmlDocCopyNode(ex->vm.domain, ex->doc, 1);

	if (!domain || !xmlAddChild(root, domain) ||
	    /* libvirt's elements have no namespace, whatever surrounds them. */
	    !xmlNewNs(domain, (const xmlChar *)"", NULL))
		return vm_no_memory(err);
	if (!ex->secrets)
		drop_secrets(domain->children);
	return 0;
}

/* What was put aside on disk: only size and sum; whoever moves it sends it beside the document. */
static int add_saved(const struct exporter *ex, xmlNode *root, struct img_err *err)
{
	json_t *saved = json_object_get(ex->status, "saved");
	xmlNode *n;
	char bytes[32];

	if (!json_is_object(saved))
		return 0;
	snprintf(bytes, sizeof bytes, "%" JSON_INTEGER_FORMAT,
		 json_integer_value(json_object_get(saved, "bytes")));
	n = add(root, "saved", err);
	if (!n || vm_set_attr(n, "mode", str(saved, "mode"), err) < 0 ||
	    vm_set_attr(n, "bytes", bytes, err) < 0 ||
	    vm_set_attr(n, "xxh128", str(saved, "xxh128"), err) < 0)
		return -1;
	return 0;
}

static int build(struct exporter *ex, struct img_err *err)
{
	xmlNode *root, *hypervisor;
	xmlNs *ns;

	ex->doc = xmlNewDoc((const xmlChar *)"1.0");
	root = ex->doc ? xmlNewNode(NULL, (const xmlChar *)"qsm-vm") : NULL;
	ns = root ? xmlNewNs(root, (const xmlChar *)VM_NS, NULL) : NULL;
	if (!ns)
		return vm_no_memory(err);
	xmlSetNs(root, ns);
	xmlDocSetRootElement(ex->doc, root);
	if (vm_set_attr(root, "version", "1", err) < 0 ||
	    vm_set_attr(root, "exporter", "vm-export " PACKAGE_VERSION, err) < 0)
		return -1;
	hypervisor = add(root, "hypervisor", err);
	if (!hypervisor || vm_set_attr(hypervisor, "name", ex->hypervisor, err) < 0 ||
	    add_text(root, "state", str(ex->status, "state"), err) < 0 ||
	    add_saved(ex, root, err) < 0 ||
	    add_text(root, "owner", str(ex->status, "owner"), err) < 0 ||
	    add_flag(ex, root, "autostart", err) < 0 || add_flag(ex, root, "ha", err) < 0 ||
	    add_disks(ex, root, err) < 0 || add_networks(ex, root, err) < 0)
		return -1;
	return add_domain(ex, root, err);
}

static int export_vm(struct exporter *ex, struct img_err *err)
{
	xmlChar *text = NULL;
	int len;

	if (ask_status(ex, err) < 0 || ask_domain(ex, err) < 0)
		return -1;
	allow_parents(ex);
	if (build(ex, err) < 0)
		return -1;
	xmlDocDumpFormatMemoryEnc(ex->doc, &text, &len, "UTF-8", 1);
	if (!text)
		return vm_no_memory(err);
	fwrite(text, 1, (size_t)len, stdout); /* cli_exit() sees a failure */
	xmlFree(text);
	return 0;
}

static const struct option options[] = {
	CLI_COMMON_LONG,
	CLI_CHAIN_LONG,
	{"hypervisor", required_argument, NULL, OPT_HYPERVISOR},
	{"secrets", no_argument, NULL, OPT_SECRETS},
	{NULL, 0, NULL, 0},
};

int main(int argc, char **argv)
{
	struct exporter ex = {.hypervisor = "qemu"};
	struct img_err err = {0};
	int opt, status;

	cli_init(argv, "vm-export", help);
	cli_common_init(&ex.common);
	while ((opt = getopt_long(argc, argv, CLI_COMMON_SHORT, options, NULL)) != -1) {
		if (opt == OPT_HYPERVISOR) {
			if (!vm_hypervisor_ok(optarg))
				cli_usage("--hypervisor=%s: not the name of an adapter", optarg);
			ex.hypervisor = optarg;
		} else if (opt == OPT_SECRETS) {
			ex.secrets = true;
		} else if (!cli_common(&ex.common, opt, optarg)) {
			cli_usage(NULL);
		}
	}
	if (optind + 1 != argc)
		cli_usage("one VM is wanted");
	ex.name = argv[optind];
	status = export_vm(&ex, &err) < 0 ? cli_fail(&err) : 0;
	vm_free(&ex.vm);
	xmlFreeDoc(ex.doc);
	json_decref(ex.status);
	return cli_exit(status);
}
