/* A TCG plugin for QEMU that counts the guest's instructions: what each translated block has, times how often
 * it ran. Whoever connects to the socket that is its argument gets a line for each block, its address and
 * instructions, both in hexadecimal. An exception in the middle of a block counts the whole block. */

#include <pthread.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* What is used of qemu-plugin.h, which Debian does not package. */
struct qemu_info_t;
struct qemu_plugin_tb;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
typedef void (*translated)(uint64_t id, struct qemu_plugin_tb *);
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, translated);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, enum qemu_plugin_op, void *to,
                                              uint64_t add);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
__attribute__((visibility("default"))) int qemu_plugin_version = 1;

struct block {
    uint64_t address, length, instructions;
    struct block *next;
};

#define BUCKETS 65536
static struct block *blocks[BUCKETS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* A block may be translated again and again: it keeps its counter. */
static void translate(uint64_t id, struct qemu_plugin_tb *tb)
{
    uint64_t address = qemu_plugin_tb_vaddr(tb), length = qemu_plugin_tb_n_insns(tb);
    struct block **bucket = &blocks[(address ^ address >> 16) % BUCKETS], *block;

    pthread_mutex_lock(&lock);
    block = *bucket;
    while (block && (block->address != address || block->length != length))
        block = block->next;
    if (!block && (block = calloc(1, sizeof *block))) {
        *block = (struct block){ address, length, 0, *bucket };
        *bucket = block;
    }
    pthread_mutex_unlock(&lock);
    if (!block)
        abort();
    qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &block->instructions, length);
}

static void *serve(void *listener)
{
    for (;;) {
        int connection = accept((int)(intptr_t)listener, NULL, NULL);
        FILE *out = connection < 0 ? NULL : fdopen(connection, "w");
        if (!out)
            return NULL;
        pthread_mutex_lock(&lock);
        for (size_t i = 0; i < BUCKETS; i++)
            for (struct block *block = blocks[i]; block; block = block->next)
                fprintf(out, "%" PRIx64 " %" PRIx64 "\n", block->address, block->instructions);
        pthread_mutex_unlock(&lock);
        fclose(out);
    }
}

__attribute__((visibility("default")))
int qemu_plugin_install(uint64_t id, const struct qemu_info_t *info, int argc, char **argv)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    pthread_t thread;

    if (argc != 1 || strncmp(argv[0], "socket=", 7) || strlen(argv[0] + 7) >= sizeof address.sun_path)
        return -1;
    strcpy(address.sun_path, argv[0] + 7);
    unlink(address.sun_path);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1)
        || pthread_create(&thread, NULL, serve, (void *)(intptr_t)listener))
        return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
    return 0;
}
