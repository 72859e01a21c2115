/* What the compiler may call by itself, as loops that an instruction interpreter runs fast: string instructions. */
#include "guest.h"

void *memcpy(void *to, const void *from, size_t size)
{
    void *d = to;

    __asm__ volatile("rep movsb" : "+D"(d), "+S"(from), "+c"(size) : : "memory");
    return to;
}

void *memset(void *to, int value, size_t size)
{
    void *d = to;

    __asm__ volatile("rep stosb" : "+D"(d), "+c"(size) : "a"(value) : "memory");
    return to;
}

int memcmp(const void *a, const void *b, size_t size)
{
    const uint8_t *p = a;
    const uint8_t *q = b;

    for (size_t i = 0; i < size; i++)
        if (p[i] != q[i])
            return p[i] - q[i];
    return 0;
}

size_t strlen(const char *text)
{
    size_t n = 0;

    while (text[n])
        n++;
    return n;
}
